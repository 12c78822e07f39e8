"""Networks as pure functions of a flat vector of parameters, their names, and several run as one."""
