"""What the doctor knows: the trials, the machine, and the remedies."""
