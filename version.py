"""The one place that names the version; actors of different versions refuse to talk to each other."""

__version__ = "0.1.0"
