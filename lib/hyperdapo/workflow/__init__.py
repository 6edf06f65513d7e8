"""How a run comes about: its stages by Snakemake, their renders by papermill, one run at a time."""
