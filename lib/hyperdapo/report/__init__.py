"""The report: what a finished run shows, as a site that is read in a browser, without a server or a network."""
