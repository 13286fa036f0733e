"""The layouts in which data sets lie: one module a format, each with the `Reader` that recognises and opens it."""
