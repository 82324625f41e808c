"""What lives from call to call: drivers, gates, counters, guards, ledger, feedback."""
