"""Pictures and labels: sources, transforms (numpy, OpenCV, simplejpeg, Pillow) and the batches that training and evaluation read."""
