"""What a run takes before it starts: probes on this machine, time and memory from them."""
