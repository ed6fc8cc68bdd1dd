"""What is drawn of an array: minimum and maximum of each column of pixels, and tiles of a recording's spectrogram.

`series` picks the numbers, `pyramid` reads what a transformation keeps of them, `envelope` reads as little as shows a
range truly, `document` is what a plot is told, `spectrogram` and `png` make tiles, `routes` serves them.
"""
