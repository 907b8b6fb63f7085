"""The integer program: what a device executes, its reference executor and its file format."""
