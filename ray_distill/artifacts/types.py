"""The words of the options with which sets are exchanged, for the command line and for what it calls."""

from typing import Literal

Space = Literal["whitened", "pixels"]
"""What the values of images are: as `data.preprocessing` leaves them (whitened, or normalised), or pixels."""

Layout = Literal["channels-first", "channels-last"]
"""The order of an image's axes: channel, row, column; or row, column, channel."""

Form = Literal["png", "npz", "pt", "parquet"]
"""What a set is exported to."""
