"""C for ARM: a self-contained C99 project around an integer program."""
