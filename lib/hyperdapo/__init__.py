"""HyperDAPO: a DAPO-based framework for optimal execution of Hyperliquid limit orders.

The data flows one way (eq. 3.1): market -> execution -> policy, and evidence reads the tables they leave.
"""

__version__ = "0.1.0"
