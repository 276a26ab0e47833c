"""The engine: a compiler for relevance. It needs torch alone."""
