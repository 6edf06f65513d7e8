"""What leaves this machine: stages that run on a rented host (§4.7, Listing 4.12)."""
