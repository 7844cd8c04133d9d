"""Reads run directories, and nothing else, and makes one HTML page with figures of them."""
