package common::sense;

# Stands in for common::sense where that is not installed: how strict Perl is with the program.
use strict;
use warnings;

sub import {
    require utf8;
    require feature;
    utf8->import;
    strict->import(qw(vars subs));
    feature->import(qw(say state));
}

sub unimport { }

1;
