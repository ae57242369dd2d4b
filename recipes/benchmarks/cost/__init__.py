"""What the cost scripts share: training steps to time, peak memory, and a process of its own for each measurement."""
