"""One stage of the workflow on a rented host, over ssh (§4.7, Listing 4.12)."""
