"""Teachers: the exact mixture, UNets, SDXL."""
