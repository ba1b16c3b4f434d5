"""What a run will cost, from the compiler of a machine that is not there."""
