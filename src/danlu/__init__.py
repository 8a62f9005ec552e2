"""danlu turns a base language model into an assistant; importing it loads neither torch nor transformers."""

__version__ = "0.1.0"
