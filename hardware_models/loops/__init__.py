"""What the loops of our own kernels repeat, by kernel family: counts beside those of `hardware_models.terms`."""
