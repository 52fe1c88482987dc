"""The image studies: digits and CIFAR-10."""
