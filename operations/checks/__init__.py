"""The checks of `make doctor`: each looks at one part of a deployment."""
