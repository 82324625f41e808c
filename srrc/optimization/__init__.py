"""The ONNX door: `srrc.optimize(model, path)` and `srrc optimize`, from a model to files that run anywhere."""
