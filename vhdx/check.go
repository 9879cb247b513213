package vhdx

import (
	"context"
	"errors"
)

func check(ctx context.Context, b Backing) (Report, error) { return Report{}, errors.ErrUnsupported }
