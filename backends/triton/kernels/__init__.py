"""One kernel a file: what it computes, its source, shapes, a reference in plain PyTorch, and how it compiles ahead."""
