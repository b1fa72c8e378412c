"""Faces in video: detect, follow, smooth, crop the face or the mouth, and say how well that went."""
