"""Values of the import and export options."""

from typing import Literal

Space = Literal["whitened", "pixels"]
"""Image values: preprocessed (by whitening or normalisation), or pixels."""

Layout = Literal["channels-first", "channels-last"]
"""The order of an image's axes: channel, row, column; or row, column, channel."""

ExportFormat = Literal["png", "npz", "pt", "parquet"]
"""What a set is exported to."""
