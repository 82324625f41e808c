"""Reads an ONNX model back as an FX graph, so that pathways are found in it, and gates calibrated on it, by the same rules
as in any other: the mirror.
"""
