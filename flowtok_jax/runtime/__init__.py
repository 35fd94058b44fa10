"""The machine below FlowTok: files, processes, devices, the command line."""
