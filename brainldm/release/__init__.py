"""From finished training runs to model folders."""
