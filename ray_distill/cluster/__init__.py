"""Ray itself: a connection, a pool of actors, the processes it starts."""
