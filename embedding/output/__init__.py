"""The output: what it holds, what is left to do, who may write, the books."""
