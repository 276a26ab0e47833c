"""Front ends for models that are not PyTorch modules: each turns a file or an object into a module, and the module
is captured like any other. The packages they read with are imported when they are used."""
