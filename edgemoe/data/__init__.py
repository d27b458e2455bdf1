"""Files of the package: the MultiMNIST nano model and its test images."""
