"""Pure vocabulary and decisions: no I/O, no clock, no chance, standard library only."""
