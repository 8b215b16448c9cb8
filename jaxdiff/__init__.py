"""jaxdiff"""
