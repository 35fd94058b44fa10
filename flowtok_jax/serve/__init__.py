"""A trained FlowTok as a service: the queue, the HTTP interface, the page."""
