"""The output of a run: claim, shards, inventory, backlog, repair, balance and run report."""
