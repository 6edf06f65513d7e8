"""What does the exchange send, when did it come, and how is it kept?"""
