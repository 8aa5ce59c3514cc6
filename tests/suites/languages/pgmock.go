// Package pgmock stands in for jackc's package of that name, which Debian does not have: what pgconn's tests need of it
// to be built. Tests that run a mock server fail with it, and say nothing about a real one.
package pgmock

import (
	"errors"

	"github.com/jackc/pgproto3/v2"
)

type Step interface {
	Step(*pgproto3.Backend) error
}

type Script struct {
	Steps []Step
}

func (*Script) Run(*pgproto3.Backend) error { return errors.New("there is no mock server here") }

func AcceptUnauthenticatedConnRequestSteps() []Step         { return nil }
func ExpectAnyMessage(want pgproto3.FrontendMessage) Step { return nil }
func SendMessage(message pgproto3.BackendMessage) Step     { return nil }
