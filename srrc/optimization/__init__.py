"""The ONNX door: `srrc.optimize(model, path)` and `srrc optimize`, from a model to a folder of files that run anywhere."""
