"""Teachers: the protocol and guidance, the exact mixture, the UNet."""
