"""The pages of the rules, one a code; shipped so that SARIF can carry them."""
