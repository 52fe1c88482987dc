"""What every part needs and none is about: files, seeds, errors, devices, processes."""
