"""What would an exchange send that plays a recording, or the synthetic exchange, and what if something goes wrong?"""
