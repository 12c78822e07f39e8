"""What any package may use and none is about: files written whole, JSON lines, memory, timing, progress."""
