"""The command line: one module a verb. No behaviour lives here."""
