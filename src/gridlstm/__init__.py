"""Grid LSTM (Kalchbrenner, Danihelka, Graves 2015, arXiv 1507.01526)."""

__version__ = "0.1.0"
