"""How good a distilled set is: networks retrained on it by a pool of Ray actors. Alone in seeing the test split."""
