mod socket;
pub mod tls;

pub(crate) use socket::name_and_address;

pub use socket::{
    connect_tcp, connect_uds, BufferedSocket, Socket, SocketIntoBox, WithSocket, WriteBuffer,
};
