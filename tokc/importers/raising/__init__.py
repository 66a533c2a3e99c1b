"""From an exporter's graph to what its decoder computes, proved at sample sizes."""
